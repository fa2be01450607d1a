# What the parent may do, and with its credentials the enclave. Decrypting is not here: the key's own
# policy permits it, to the measured enclave alone.

locals {
  role_arn = aws_iam_role.parent.arn
}

resource "aws_iam_role" "parent" {
  name_prefix = "${var.name}-parent-"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_instance_profile" "parent" {
  name_prefix = "${var.name}-parent-"
  role        = aws_iam_role.parent.name
}

# Session Manager, in place of SSH. AWS's own policy for it, AmazonSSMManagedInstanceCore, also reads every
# parameter of the account.
resource "aws_iam_role_policy" "sessions" {
  name = "sessions"
  role = aws_iam_role.parent.name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect = "Allow"
      Action = [
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
      ]
      Resource = "*"
    }]
  })

  #checkov:skip=CKV_AWS_290:channels are no resources
  #checkov:skip=CKV_AWS_355:as above
}

resource "aws_iam_role_policy" "parent" {
  name = "enclave"
  role = aws_iam_role.parent.name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "FetchWhatRunsHere"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = "${aws_s3_bucket.artifacts.arn}/*"
      },
      {
        # Of no key, so it has no other resource than all.
        Sid      = "Random"
        Effect   = "Allow"
        Action   = "kms:GenerateRandom"
        Resource = "*"
      },
      {
        Sid    = "TakeCards"
        Effect = "Allow"
        Action = [
          "sqs:ChangeMessageVisibility",
          "sqs:DeleteMessage",
          "sqs:GetQueueAttributes",
          "sqs:GetQueueUrl",
          "sqs:ReceiveMessage",
        ]
        Resource = aws_sqs_queue.queue["cards"].arn
      },
      {
        Sid      = "SendResults"
        Effect   = "Allow"
        Action   = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"]
        Resource = aws_sqs_queue.queue["results"].arn
      },
    ]
  })
}
