# Which enclaves the key is for, the same as `enclave-app kms policy` prints: the parent's role may
# decrypt and make data keys from a measured enclave alone and encrypt from anywhere; administrators may
# do all but use the key. No statement leaves it to IAM policies who may use it.

locals {
  measurements = [
    for path in concat([var.pcr_values], var.former_pcr_values) : {
      for name, value in try(jsondecode(file(path)).Measurements, jsondecode(file(path))) : name => lower(value)
      if can(regex("^PCR([12]?[0-9]|3[01])$", name))
    }
  ]

  key_policy = {
    Version = "2012-10-17"
    Statement = concat(
      [
        for index, pcrs in local.measurements : {
          Sid       = index == 0 ? "OnlyThisEnclave" : "OrFormerEnclave${index}"
          Effect    = "Allow"
          Principal = { AWS = [local.role_arn] }
          Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
          Resource  = "*"
          Condition = {
            StringEqualsIgnoreCase = { for name, value in pcrs : "kms:RecipientAttestation:${name}" => value }
          }
        }
      ],
      [
        {
          Sid       = "Encrypt"
          Effect    = "Allow"
          Principal = { AWS = concat([local.role_arn], var.senders) }
          Action    = ["kms:Encrypt"]
          Resource  = "*"
        },
        {
          Sid       = "Administration"
          Effect    = "Allow"
          Principal = { AWS = length(var.key_administrators) > 0 ? var.key_administrators : [local.account_root] }
          Action = [
            "kms:CancelKeyDeletion",
            "kms:DescribeKey",
            "kms:DisableKey*",
            "kms:EnableKey*",
            "kms:GetKey*",
            "kms:ListKeyPolicies",
            "kms:ListResourceTags",
            "kms:PutKeyPolicy",
            "kms:ScheduleKeyDeletion",
            "kms:TagResource",
            "kms:UntagResource",
            "kms:UpdateKeyDescription",
          ]
          Resource = "*"
        },
      ],
    )
  }
}
